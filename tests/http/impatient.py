"""`onsale` with a patience of ONSALE_TEST_READ_S seconds, for tests that wait until it is over."""

import os

from service.cli import main
from service.http1 import Http1

if __name__ == "__main__":
    Http1.read_s = float(os.environ["ONSALE_TEST_READ_S"])
    main()
