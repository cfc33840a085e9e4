"""People with photographed skin, hair, eyes and clothes: MakeHuman's CC0 assets, put on the bundled head."""
