# Reads a core with a third-party reader and prints what it finds as JSON. Arguments: libkdumpfile|drgn CORE ADDRESS, the
# address being that of linux_banner, as the guest's own /proc/kallsyms told it.
import json
import sys

which, core, address = sys.argv[1], sys.argv[2], int(sys.argv[3], 16)
LONGEST = 256


def text(memory):
    return bytes(memory).split(b"\0")[0].decode()


if which == "libkdumpfile":
    import addrxlat
    import kdumpfile

    dump = kdumpfile.kdumpfile(core)
    dump.attr["addrxlat.ostype"] = "linux"

    # `conv` walks the page tables that libkdumpfile found. The context that the dump itself gives has a callback that its
    # Python module (0.5.1) cannot call, so it reads by one of our own.
    class Pages(addrxlat.Context):
        def cb_read_caps(self):
            return addrxlat.CAPS(addrxlat.MACHPHYSADDR)

        def cb_get_page(self, place):
            place.addr &= ~4095
            virtual = place.addrspace == addrxlat.KVADDR
            space = kdumpfile.KDUMP_KVADDR if virtual else kdumpfile.KDUMP_MACHPHYSADDR
            return dump.read(space, place.addr, 4096), addrxlat.LITTLE_ENDIAN

    place = addrxlat.FullAddress(addrxlat.KVADDR, address)
    place.conv(addrxlat.KPHYSADDR, Pages(), dump.get_addrxlat_sys())
    cpus = [dump.attr[f"cpu.{n}.reg"] for n in range(dump.attr["cpu.number"])]
    found = {
        "banner": text(dump.read(kdumpfile.KDUMP_KVADDR, address, LONGEST)),
        "by_physical": text(dump.read(kdumpfile.KDUMP_KPHYSADDR, place.addr, LONGEST)),
        "cpus": [{name: cpu[name] for name in ("rip", "rsp", "rflags")} for cpu in cpus],
    }
else:
    import drgn

    program = drgn.Program()
    program.set_core_dump(core)
    found = {
        "banner": text(program.read(address, LONGEST)),
        "release": program["UTS_RELEASE"].string_().decode(),
        "is_kernel": bool(program.flags & drgn.ProgramFlags.IS_LINUX_KERNEL),
    }
print(json.dumps(found))
