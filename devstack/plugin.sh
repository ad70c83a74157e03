#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# devstack plugin of nova-vmi-attest. One line in local.conf enables it:
#
#   enable_plugin nova-vmi-attest <repository> <branch>

# shellcheck source=devstack/lib/nova-vmi-attest
source "$NOVA_VMI_ATTEST_DIR/devstack/lib/nova-vmi-attest"

case "${1:-}/${2:-}" in
    stack/install)
        install_nova_vmi_attest
        ;;
    stack/post-config)
        # Before nova-scheduler starts, so that its first start already has the filter.
        configure_nova_vmi_attest
        configure_nova_vmi_attest_filter
        ;;
    stack/extra)
        init_nova_vmi_attest
        start_nova_vmi_attest
        ;;
    unstack/*)
        stop_nova_vmi_attest
        ;;
    clean/*)
        cleanup_nova_vmi_attest
        ;;
esac
