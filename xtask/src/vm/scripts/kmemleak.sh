# Refusals first: nothing is mounted yet.
section unmounted leakscope kernel scan
section status leakscope kernel status

# The clean twin is loaded first; its blocks would be there in every scan.
insmod /mod/clean.ko
echo 4 > /sys/module/clean/parameters/more
insmod /mod/leaky.ko
section scan leakscope kernel scan --mount --rescan 1 --min-age 12s --modules /mod --format json -o /tmp/first.leak --keep-dump /tmp/dump.txt
section unmounted-again leakscope kernel scan
keep dump /tmp/dump.txt

section report leakscope report /tmp/first.leak
section foreign-dump leakscope kernel diff /tmp/first.leak /etc/passwd

# Growth: blocks of a site that the first scan did not know.
echo 3 > /sys/module/leaky/parameters/more
section second leakscope kernel scan --mount --rescan 1 --min-age 12s -q --format json -o /tmp/second.leak
section diff leakscope kernel diff --format json /tmp/first.leak /tmp/second.leak
section gate leakscope gate /tmp/second.leak

mount -t debugfs none /sys/kernel/debug
section not-root su -s /bin/sh nobody -c "leakscope kernel scan"
section object leakscope kernel dump $(grep -m 1 -o '0xff[0-9a-f]*' /tmp/dump.txt)
section no-object leakscope kernel dump 0x10
section set leakscope kernel set --stack=off --scan=600
leakscope kernel set --stack=on --scan=off

# What is set aside is not reported again.
section clear leakscope kernel clear
section cleared leakscope kernel scan --rescan 0 --min-age 6s -q --format json

# The kernel's checkers, for the readers of their reports.
insmod /mod/buggy.ko
# Not from boot on: what is allocated then would keep KFENCE's few blocks.
echo 5 > /sys/module/kfence/parameters/sample_interval
for bug in read-past write-past read-freed write-freed free-twice free-inside; do
    echo kfence-$bug > /sys/module/buggy/parameters/bug
done
for bug in write-past write-freed free-twice free-inside; do
    echo $bug > /sys/module/buggy/parameters/bug
done
dmesg > /tmp/dmesg.txt
section checkers leakscope import -q --format json /tmp/dmesg.txt
keep dmesg /tmp/dmesg.txt

# Nothing can be scanned after this.
section off leakscope kernel set --off-until-reboot
section disabled leakscope kernel scan
section status-at-end leakscope kernel status
