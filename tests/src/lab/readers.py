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
    place = addrxlat.FullAddress(addrxlat.KVADDR, address)
    place.conv(addrxlat.KPHYSADDR, dump.get_addrxlat_ctx(), dump.get_addrxlat_sys())
    cpus = [dump.attr[f"cpu.{n}.reg"] for n in range(dump.attr["cpu.number"])]
    found = {
        "banner": text(dump.read(kdumpfile.KDUMP_KVADDR, address, LONGEST)),
        "physical": place.addr,
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
