"""What a run leaves behind: its folder, the screen that follows it, its figures."""
