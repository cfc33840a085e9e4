"""The paper's measures: reconstruction, and LPIPS in bins of the head's angle."""
