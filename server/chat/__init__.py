"""From the settings to the language models that callers can name: the file of providers, who is asked in which order,
the models of providers, and a slot for every name.
"""
