"""The paper's measures: reconstruction and angle-binned LPIPS (not written yet)."""
