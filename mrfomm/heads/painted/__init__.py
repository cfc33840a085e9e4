"""People whose looks are drawn by formulas: what they look like, where that is on a head, its textures and meshes."""
