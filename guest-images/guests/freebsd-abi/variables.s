# The kernel's variables, with the names, sizes and bindings that FreeBSD's symbol table has. What is static there is
# local here. Sizes in braces differ between the flavours; see
# flavour.rs.

.macro variable name, size, align=8
    .balign \align
    .type \name, @object
    .size \name, \size
\name:
    .skip \size
.endm
.macro public name, size, align=8
    .global \name
    variable \name, \size, \align
.endm
.macro constant name, value
    .global \name
    .balign 4
    .type \name, @object
    .size \name, 4
\name:
    .long \value
.endm
.macro absolute name, value
    .global \name
    .set \name, \value
.endm

absolute kernbase, 0xffffffff80000000
absolute kernload, 0x200000
absolute dmapbase, 0xfffff80000000000
absolute dmapend, 0xfffffc0000000000

.bss
public KPML4phys, 8
.if {is_12} == 0
public KPML5phys, 8                     # zero, as is la57: four levels
public la57, 4
.endif
public kernel_vm_end, 8
public nkpt, 4
public dmaplimit, 8
public kernphys, 8
public dump_avail, 128 * 8
public vm_page_dump, 8
.if {is_12}
public vm_page_dump_size, 4
.else
public vm_page_dump_pages, 8
.endif
public msgbufp, 8
public kern_envp, 8
variable md_envp, 8
variable md_env_len, 4
variable md_env_pos, 4
public kenvp, 8
public dynamic_kenv, {flag_size}, 1
public panicstr, 8
public panicked, {flag_size}, 4
public dumping, 4
public rebooting, 4
public cold, 4
variable panic_buffer, 256
variable dumppcb, {pcb_size}, 16
variable dumptid, 4
public stoppcbs, {stoppcbs_size}, 16
public all_cpus, {cpuset_size}
public stopped_cpus, {cpuset_size}
public started_cpus, {cpuset_size}
public mp_maxid, 4
public mp_ncpus, 4
public cpuid_to_pcpu, {max_cpu} * 8
public time_second, 8
public allproc, 8
public prison0, {prison_size}
.if {is_12}
public zombproc, 8
variable dumper, 0x80
public __pcpu, {max_cpu} * 4096, 4096
.else
variable dumper_configs, 16
public __pcpu, 8
.endif

# What no FreeBSD has: the guest's own idea of a minidump, for tests; see oracle.rs and pattern.rs.
public oracle_bitmap, 8
public oracle_pages, 8
public pattern_pages, 8 + 64 * 24

# Orders to kernel.s.
variable order_stop, 8
variable order_others, 4
variable order_after, 8
variable order_delay, 8
variable order_dump_time, 8
variable order_debugger, 4
variable order_save, 4
variable order_dump, 4
variable order_final, 4
variable order_quiet, 4
variable order_text, 256
variable order_message, 1024
variable order_damage, 8 * 16
variable lapic_address, 8
variable stoppcbs_address, 8

.section .rodata
constant osreldate, {osreldate}
constant hz, {hz}
constant pcb_size, {pcb_size}
constant proc_off_p_pid, {p_pid}
constant proc_off_p_comm, {p_comm}
constant proc_off_p_list, {p_list}
constant proc_off_p_hash, {p_hash}
constant proc_off_p_threads, {p_threads}
constant thread_off_td_tid, {td_tid}
constant thread_off_td_name, {td_name}
constant thread_off_td_oncpu, {td_oncpu}
constant thread_off_td_pcb, {td_pcb}
constant thread_off_td_plist, {td_plist}
