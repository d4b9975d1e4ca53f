# Refusals: a kmemleak that ran out of memory at boot, BPF without BTF.
section no-memory leakscope kernel scan --mount
section no-btf leakscope kernel trace --for 1s --once
section status leakscope kernel status

# Each bug twice, if KFENCE can see it: in blocks that KASAN guards, and in KFENCE's.
insmod /mod/buggy.ko
dmesg -c > /tmp/boot.txt
for bug in read-past write-past read-freed write-freed free-twice free-inside read-stack read-global read-vmalloc; do
    echo $bug > /sys/module/buggy/parameters/bug
done
dmesg -c > /tmp/kasan.txt
section kasan leakscope import -q --format json /tmp/kasan.txt
keep kasan-log /tmp/kasan.txt
# Not from boot on: what is allocated then would keep KFENCE's few blocks.
echo 5 > /sys/module/kfence/parameters/sample_interval
for bug in read-past write-past read-freed write-freed free-twice free-inside; do
    echo kfence-$bug > /sys/module/buggy/parameters/bug
done
dmesg -c > /tmp/kfence.txt
section kfence leakscope import -q --format json /tmp/kfence.txt
keep kfence-log /tmp/kfence.txt

# Pages by stack; the list of all pages has tens of thousands of entries, which takes minutes here.
mount -t debugfs none /sys/kernel/debug
insmod /mod/leaky.ko
awk 'BEGIN { RS = ""; ORS = "\n\n" } /\[leaky\]/' /sys/kernel/debug/page_owner_stacks/show_stacks > /tmp/stacks.txt
section page-stacks leakscope import -q --format json --show-leak-kinds=all /tmp/stacks.txt
section page-stacks-list cat /tmp/stacks.txt

# Lockdown can only be made stricter.
mount -t securityfs none /sys/kernel/security
echo integrity > /sys/kernel/security/lockdown
section integrity leakscope kernel scan
echo confidentiality > /sys/kernel/security/lockdown
section confidentiality leakscope kernel trace --for 1s --once
section status-locked leakscope kernel status
