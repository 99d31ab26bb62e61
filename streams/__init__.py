"""What happened: the event contract, the event logs, the emitter, the consumer runtime, masking."""
