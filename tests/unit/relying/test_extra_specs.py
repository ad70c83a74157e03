# SPDX-License-Identifier: Apache-2.0
"""Nova's own validation knows the extra specs, through the entry point it loads them from."""

from __future__ import annotations

import pytest
from nova import exception
from nova.api.validation.extra_specs import validators

from nova_vmi_attest.conf.relying import LEVELS
from nova_vmi_attest.relying import extra_specs
from nova_vmi_attest.relying.demand import GUEST, HOST, NEIGHBOURS


def test_every_level_of_every_spec_is_valid() -> None:
    assert {validator.name for validator in extra_specs.register()} == {HOST, GUEST, NEIGHBOURS}
    for name in (HOST, GUEST, NEIGHBOURS):
        for level in LEVELS:
            validators.validate(name, level)
        assert validators.VALIDATORS[name].description


@pytest.mark.parametrize("value", ["", "Required", "required ", "true", "requiredrequired", "required\n"])
def test_other_values_are_refused(value: str) -> None:
    with pytest.raises(exception.ValidationError):
        validators.validate(HOST, value)


@pytest.mark.parametrize("name", ["trust:hosts", "trust:", "trust:host:x"])
def test_misspelt_names_are_refused(name: str) -> None:
    with pytest.raises(exception.ValidationError):
        validators.validate(name, "required")
