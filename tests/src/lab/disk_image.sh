#!/bin/sh
# disk_image.sh SUITE SOURCES OUTPUT, in an empty folder, as root: a Debian with its stock kernel on a disk for firmware, made the
# way such images are made, by tools that know nothing of this project. Its administrator collects dumps: see /etc/default/grub.
set -eu
suite=$1 sources=$2 output=$3
root_uuid=6a1b0c2d-3e4f-4a5b-8c6d-7e8f9a0b1c2d
export LC_ALL=C MTOOLS_SKIP_CHECK=1 SOURCE_DATE_EPOCH="$(stat -c %Y "$sources")"

mmdebstrap --quiet --mode=root --variant=essential \
    --include=linux-image-cloud-amd64,systemd-sysv,udev,initramfs-tools,zstd,kmod,grub2-common \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' "$suite" root "$sources"

echo lab > root/etc/hostname
echo "UUID=$root_uuid / ext4 errors=remount-ro 0 1" > root/etc/fstab
cat > root/etc/default/grub <<'END'
GRUB_DEFAULT=0
GRUB_TIMEOUT=5
GRUB_DISTRIBUTOR=Debian
GRUB_CMDLINE_LINUX_DEFAULT="quiet"
GRUB_CMDLINE_LINUX="net.dump.server=10.0.0.9 net.dump.client=10.0.0.5"
END

# The lab's unit panics the kernel, unless the command line has lab=off.
cat > root/usr/local/sbin/lab-unit <<'END'
#!/bin/sh
# Loud enough for `quiet`.
say() { echo "<1>guest: $*" > /dev/kmsg; }
say "the unit is up on $(findmnt -n -o SOURCE,FSTYPE /)"
say "banner is $(cat /proc/version)"
say "linux_banner is at $(grep -m1 ' linux_banner$' /proc/kallsyms | cut -d' ' -f1)"
echo written by the guest > /var/lib/lab
case " $(cat /proc/cmdline) " in
*" lab=off "*) systemctl --no-block poweroff ;;
*) sync; echo c > /proc/sysrq-trigger ;;
esac
END
chmod 755 root/usr/local/sbin/lab-unit
cat > root/etc/systemd/system/lab.service <<'END'
[Unit]
Description=The lab
[Service]
Type=oneshot
ExecStart=/usr/local/sbin/lab-unit
[Install]
WantedBy=multi-user.target
END
chroot root systemctl --quiet enable lab.service

# GRUB's own generator writes grub.cfg. It asks grub-probe about a disk that is not there yet, which this one tells of.
mv root/usr/sbin/grub-probe grub-probe
cat > root/usr/sbin/grub-probe <<END
#!/bin/sh
case " \$* " in
*--target=device\ *) echo /dev/vda2 ;;
*--target=fs_uuid\ *) echo $root_uuid ;;
*--target=fs\ *) echo ext2 ;;
*--target=partmap\ *) echo gpt ;;
*--target=compatibility_hint\ *) echo hd0,gpt2 ;;
*--target=hints_string\ *) echo --hint-bios=hd0,gpt2 ;;
esac
END
chmod 755 root/usr/sbin/grub-probe
mkdir -p root/boot/grub root/dev/disk/by-uuid
touch root/dev/disk/by-uuid/$root_uuid
chroot root grub-mkconfig -o /boot/grub/grub.cfg
rm -r root/dev/disk
mv grub-probe root/usr/sbin/grub-probe

truncate -s 8M esp
mkfs.vfat -n ESP esp > mkfs.log
mmd -i esp ::EFI ::EFI/debian
cat > stub.cfg <<END
search.fs_uuid $root_uuid root hd0,gpt2
set prefix=(\$root)'/boot/grub'
configfile \$prefix/grub.cfg
END
mcopy -i esp stub.cfg ::EFI/debian/grub.cfg

truncate -s 448M ext4
mkfs.ext4 -q -L root -U $root_uuid -d root ext4
truncate -s 458M disk
sgdisk --clear --new=1:1M:+8M --typecode=1:ef00 --new=2:9M:+448M --typecode=2:8304 disk > sgdisk.log
dd if=esp of=disk bs=1M seek=1 conv=notrunc,sparse status=none
dd if=ext4 of=disk bs=1M seek=9 conv=notrunc,sparse status=none
mv disk "$output"
