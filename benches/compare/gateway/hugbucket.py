"""Starts HugBucket from a checkout: hugbucket.py CHECKOUT ENDPOINT PORT.

Its Hub is fixed to the public one, so the endpoint is set here. It is written for Python 3.14: with an older one its
lists of exceptions get the parentheses that they need there. Nothing else is changed.
"""

import importlib.machinery
import re
import sys

checkout, endpoint, port = sys.argv[1:]
sys.path.insert(0, checkout)
sys.argv = ["hugbucket", "--host", "127.0.0.1", "--port", port]

if sys.version_info < (3, 14):
    compile_source = importlib.machinery.SourceFileLoader.source_to_code

    def with_parentheses(self, data, path, **options):
        data = re.sub(rb"(?m)^(\s*except )(\w[\w.]*(?:, \w[\w.]*)+):", rb"\1(\2):", bytes(data))
        return compile_source(self, data, path, **options)

    importlib.machinery.SourceFileLoader.source_to_code = with_parentheses

from hugbucket.config import Config  # noqa: E402

make = Config.__init__
Config.__init__ = lambda self, *given, **named: make(self, *given, **{"hf_endpoint": endpoint, **named})

from hugbucket.main import main  # noqa: E402

main()
