"""How clients reach the functions of a machine, a module each."""
