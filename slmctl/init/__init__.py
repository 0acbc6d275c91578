"""A stranger's rows -> a project: what the rows hold, what is proposed for them, and `slmctl.yaml`."""
