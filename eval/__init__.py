"""The paper's measures: reconstruction, and LPIPS in bins of the head's angle."""

import mrfomm  # noqa: F401 - before nnabla, which would greet on stderr
