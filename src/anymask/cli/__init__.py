"""The command line: thin, parse, call a public function, show."""
