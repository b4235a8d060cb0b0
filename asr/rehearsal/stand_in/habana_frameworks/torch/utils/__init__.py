"""What kind of device this is."""
