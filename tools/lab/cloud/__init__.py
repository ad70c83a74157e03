# SPDX-License-Identifier: Apache-2.0
"""A real OpenStack on this machine: two hypervisors, the services of a small cloud, and ours beside them.

Everything comes from PyPI and Debian packages, runs as processes of one directory, listens on loopback and
on sockets in that directory, and ends when it is told to. Nothing that the machine runs or configures is
touched, and several clouds may run at once.
"""
