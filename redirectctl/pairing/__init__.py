"""`redirectctl pair`: two hosts approve each other's keys over ssh, which has authenticated both sides already."""
