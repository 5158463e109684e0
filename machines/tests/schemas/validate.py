"""Judges a configuration, JSON on standard input, by a schema of a published API description.

    validate.py DESCRIPTION.yaml POINTER <configuration.json

Prints what is not allowed, one line each, sorted. The descriptions leave open whether an object may have more than they say, and the
launchers refuse it: so does this.
"""

import json
import sys

import jsonschema
import yaml


def close(schema):
    """Has every object allow no property but those that are said."""
    if isinstance(schema, list):
        for each in schema:
            close(each)
    elif isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict):
            schema.setdefault("additionalProperties", False)
        for each in schema.values():
            close(each)


with open(sys.argv[1], encoding="utf-8") as file:
    description = yaml.safe_load(file)
close(description)
description["$ref"] = sys.argv[2]
validator = jsonschema.Draft4Validator(description)
for fault in sorted(f"{'/'.join(map(str, error.path))}: {error.message}" for error in validator.iter_errors(json.load(sys.stdin))):
    print(fault)
