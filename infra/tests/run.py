"""Runs the named test modules and ends with the line that infra/test.sh adds up."""

import logging
import sys
import unittest

logging.getLogger("werkzeug").setLevel(logging.ERROR)  # moto's server writes a line for each question
logging.getLogger("moto").setLevel(logging.ERROR)
suite = unittest.defaultTestLoader.loadTestsFromNames(sys.argv[1:])
result = unittest.TextTestRunner(verbosity=2).run(suite)
failed = len(result.failures) + len(result.errors)
ok = result.wasSuccessful() and not result.skipped
print(f"test result: {'ok' if ok else 'FAILED'}. {result.testsRun - failed - len(result.skipped)} passed; "
      f"{failed + len(result.skipped)} failed;")
sys.exit(not ok)
