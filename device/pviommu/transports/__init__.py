"""How clients reach the functions of a machine: one module per transport."""
