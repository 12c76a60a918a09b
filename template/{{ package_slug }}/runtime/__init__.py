"""Owned by the template: how tasks run. `copier update` changes what is in here."""
