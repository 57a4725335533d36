"""What runs a bundle on a device: this machine, C++, emulated Arm, remote hosts, browsers."""
