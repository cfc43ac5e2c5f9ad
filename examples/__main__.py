import sys

from examples.flights import main

sys.exit(main())
