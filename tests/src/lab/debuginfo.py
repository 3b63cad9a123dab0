# What drgn makes of a core with the kernel's debug information, as JSON. Arguments: CORE VMLINUX.
import json
import sys

import drgn

program = drgn.Program()
program.set_core_dump(sys.argv[1])
program.load_debug_info([sys.argv[2]])
thread = program.crashed_thread()
stack = thread.stack_trace()
found = {
    "rip": stack[0].register("rip"),
    "rsp": stack[0].register("rsp"),
    "stack": [frame.name or "" for frame in stack],
}
print(json.dumps(found))
