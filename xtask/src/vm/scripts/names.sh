insmod /mod/leaky.ko
scan() { leakscope kernel scan --mount --rescan 0 --min-age 5s -q --format json "$@"; }

# Files, lines and inlined functions of the kernel and of a module, which is compressed as distributions do it.
section vmlinux scan --vmlinux /boot/vmlinux --modules /packed/xz --keep-dump /tmp/dump.txt
section dump cat /tmp/dump.txt
section gz scan --modules /packed/gz
section zst scan --modules /packed/zst --system-map /boot/System.map

# What is no such file gives no names, and says so.
section foreign scan --vmlinux /script.sh --system-map /script.sh
