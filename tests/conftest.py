"""Set-up shared by all tests: what has to be in place before nnabla or mpirun is first used."""

import logging
import os

# nnabla greets on the root logger when it is imported.
logging.getLogger("nnabla").setLevel(logging.WARNING)

# Open MPI refuses to run as root, which is who tests are in a container.
if os.geteuid() == 0:
    os.environ.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
