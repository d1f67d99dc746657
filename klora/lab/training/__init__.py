"""Training from the icon sets, stage by stage; every stage goes on where it stopped."""
