"""What a checkpoint is made of, without the framework that trains: NeMo and Lightning are not imported here."""
