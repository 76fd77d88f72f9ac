"""Results of tests, as other programs read and write them: KTAP and JUnit."""
