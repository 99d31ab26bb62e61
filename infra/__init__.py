"""What everyone needs: settings, errors, identities, artifacts, database, models, language-model backends, CLI."""
