"""The command line: thin, parse, call a public function, show. DESIGN.md, section 5, is its grammar."""
