"""What five rooms or more share."""
