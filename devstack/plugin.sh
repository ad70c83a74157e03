#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# devstack plugin of nova-vmi-attest. One line in local.conf enables it:
#
#   enable_plugin nova-vmi-attest <repository> <branch>

# shellcheck source=devstack/lib/nova-vmi-attest
source "$NOVA_VMI_ATTEST_DIR/devstack/lib/nova-vmi-attest"
# shellcheck source=devstack/lib/nova
source "$NOVA_VMI_ATTEST_DIR/devstack/lib/nova"
# shellcheck source=devstack/lib/tpm
source "$NOVA_VMI_ATTEST_DIR/devstack/lib/tpm"
# shellcheck source=devstack/lib/guest
source "$NOVA_VMI_ATTEST_DIR/devstack/lib/guest"

case "${1:-}/${2:-}" in
    stack/install)
        install_nova_vmi_attest
        ;;
    stack/post-config)
        # Before Nova starts, so that its first start already has the filter, the driver and the keys they read.
        configure_nova_vmi_attest
        init_nova_vmi_attest
        configure_nova_vmi_attest_nova
        ;;
    stack/extra)
        start_nova_vmi_attest
        if [[ $NOVA_VMI_ATTEST_IMAGE == True ]] && is_service_enabled vmi-verifier && is_service_enabled g-api; then
            make_nova_vmi_attest_image
        fi
        ;;
    stack/test-config)
        if [[ $NOVA_VMI_ATTEST_IMAGE == True ]] && is_service_enabled tempest; then
            configure_nova_vmi_attest_tempest
        fi
        ;;
    unstack/*)
        stop_nova_vmi_attest
        ;;
    clean/*)
        cleanup_nova_vmi_attest_nova
        cleanup_nova_vmi_attest
        ;;
esac
