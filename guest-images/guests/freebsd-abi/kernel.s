# The kernel's text, ring 0: what the CPUs do that a host looks at, with the frames and the names of FreeBSD's kernel.
# Every function keeps a frame pointer. Small, since some KVM hosts emulate all of it.
#
# Orders come from Rust in the variables `order_*`; see panic.rs.

.set PC_CURTHREAD, 0x00
.set PC_CPUID, 0x3c
.set PCB_SIZE, 0x140

.macro begin name
    .balign 16
    .global \name
    .type \name, @function
\name:
    push rbp
    mov rbp, rsp
.endm
.macro finish name
    .size \name, . - \name
.endm

# A function that does nothing but call another: one frame of a backtrace. `.Lname` is where the call returns to.
.macro calls name, callee
    begin \name
    call \callee
.L\name:
    pop rbp
    ret
    finish \name
.endm

.section .text.kernel, "ax"
.code64

# --- Threads that run -------------------------------------------------------------------------------------------------

# First of every kernel thread.
.balign 16
.global fork_trampoline
.type fork_trampoline, @function
fork_trampoline:
    call fork_exit
    ud2
    finish fork_trampoline

calls fork_exit, sched_idletd
calls sched_idletd, cpu_idle

begin cpu_idle
    lock inc dword ptr [rip + cpus_in_kernel]
2:  hlt
    jmp 2b
    finish cpu_idle

# First of every system call.
.balign 16
.global fast_syscall_common
.type fast_syscall_common, @function
fast_syscall_common:
    call amd64_syscall
.Lfast_syscall_common:
    ud2
    finish fast_syscall_common

# Only the thread that is told to panic runs this; that of sleepers is in their stacks.
calls amd64_syscall, sys_abi_panic
begin sys_abi_panic
    call wait_for_all
    mov rdi, [rip + order_after]
    call tsc_delay
    call panic
    ud2
    finish sys_abi_panic

# --- Threads that sleep: only the return addresses are used -----------------------------------------------------------

calls sys_wait4, kern_wait6
calls kern_wait6, _sleep
calls _sleep, sleepq_wait
calls sleepq_wait, mi_switch
calls mi_switch, sched_switch
calls sched_switch, cpu_switch

.balign 16
.global cpu_switch
.type cpu_switch, @function
cpu_switch:
    ret
    finish cpu_switch

.section .rodata
.balign 8
.global sleeping_chain
sleeping_chain:
    .quad .Lsched_switch, .Lmi_switch, .Lsleepq_wait, .L_sleep, .Lkern_wait6, .Lsys_wait4, .Lamd64_syscall
    .quad .Lfast_syscall_common
.section .text.kernel

# --- Stopping the others ----------------------------------------------------------------------------------------------

# NMI: the interrupted RIP is the return address of this frame.
begin nmi_calltrap
    call cpustop_handler
    ud2
    finish nmi_calltrap

begin cpustop_handler
    mov edi, gs:[PC_CPUID]
    imul edi, edi, PCB_SIZE
    add rdi, [rip + stoppcbs_address]
    call savectx
    mov edi, gs:[PC_CPUID]
    lock bts [rip + stopped_cpus], edi
2:  hlt
    jmp 2b
    finish cpustop_handler

# RDI = struct pcb. RIP is the return address and RSP points at it.
.balign 16
.global savectx
.type savectx, @function
savectx:
    mov [rdi + 0x00], r15
    mov [rdi + 0x08], r14
    mov [rdi + 0x10], r13
    mov [rdi + 0x18], r12
    mov [rdi + 0x20], rbp
    mov [rdi + 0x28], rsp
    mov [rdi + 0x30], rbx
    mov rax, [rsp]
    mov [rdi + 0x38], rax
    mov ecx, 0xc0000101
    rdmsr
    mov [rdi + 0x48], eax
    mov [rdi + 0x4c], edx
    mov ecx, 0xc0000102
    rdmsr
    mov [rdi + 0x50], eax
    mov [rdi + 0x54], edx
    mov ecx, 0xc0000080
    rdmsr
    mov [rdi + 0xe8], eax
    mov [rdi + 0xec], edx
    mov rax, cr0
    mov [rdi + 0x58], rax
    mov rax, cr2
    mov [rdi + 0x60], rax
    mov rax, cr3
    mov [rdi + 0x68], rax
    mov rax, cr4
    mov [rdi + 0x70], rax
    sgdt [rdi + 0xa8]
    sidt [rdi + 0xb2]
    ret
    finish savectx

# NMI to each CPU of `order_stop`; waits for all, within limits.
begin stop_cpus_hard
    push rbx
    mov rbx, [rip + order_stop]
    test rbx, rbx
    jz 9f
    mov rsi, [rip + lapic_address]
2:  bsf rax, rbx
    jz 3f
    btr rbx, rax
    shl eax, 24
    mov [rsi + 0x310], eax              # destination
    mov dword ptr [rsi + 0x300], 0x4400 # NMI, assert
    jmp 2b
3:  mov rbx, [rip + order_stop]
    mov ecx, 1000000
4:  mov rax, [rip + stopped_cpus]
    cmp rax, rbx
    je 9f
    pause
    dec ecx
    jnz 4b
    lea rdi, [rip + timeout_text]
    call prf_putbuf
9:  pop rbx
    pop rbp
    ret
    finish stop_cpus_hard

# --- The panic, in the order of sys/kern/kern_shutdown.c --------------------------------------------------------------

calls panic, vpanic

begin vpanic
    call stop_cpus_hard
    lea rax, [rip + {panic_format}]
    mov [rip + panicstr], rax
    mov byte ptr [rip + panicked], 1
    mov rdi, [rip + order_delay]
    call tsc_delay
    lea rsi, [rip + order_text]
    lea rdi, [rip + panic_buffer]
    mov ecx, 256
    cld
    rep movsb
    lea rax, [rip + panic_buffer]
    mov [rip + panicstr], rax
    lea rdi, [rip + order_message]
    call prf_putbuf
    cmp dword ptr [rip + order_debugger], 0
    je 2f
    call kdb_enter
    ud2
2:  call kern_reboot
    ud2
    finish vpanic

# Waits for commands that nobody types.
begin kdb_enter
2:  pause
    jmp 2b
    finish kdb_enter

begin kern_reboot
    mov dword ptr [rip + rebooting], 1
    call doadump
    call shutdown_final
    ud2
    finish kern_reboot

begin doadump
    cmp dword ptr [rip + order_save], 0
    je 9f
    lea rdi, [rip + dumppcb]
    call savectx
    mov rax, gs:[PC_CURTHREAD]
    mov eax, [rax + {td_tid}]
    mov [rip + dumptid], eax
    cmp dword ptr [rip + order_dump], 0
    je 9f
    inc dword ptr [rip + dumping]
    lea rdi, [rip + dumping_text]
    call prf_putbuf
    mov rdi, [rip + order_dump_time]
    call tsc_delay
    dec dword ptr [rip + dumping]
    lea rdi, [rip + dumped_text]
    call prf_putbuf
9:  pop rbp
    ret
    finish doadump

begin shutdown_final
    lea rsi, [rip + order_damage]       # addresses and values, behind the last an address of 0
2:  mov rdi, [rsi]
    test rdi, rdi
    jz 3f
    mov rax, [rsi + 8]
    mov [rdi], rax
    add rsi, 16
    jmp 2b
3:  mov eax, [rip + order_final]
    lea rcx, [rip + finals]
    jmp [rcx + rax * 8]
final_halt:
    cli
    hlt
    jmp final_halt
final_spin:
    pause
    jmp final_spin
final_reset_8042:
    mov al, 0xfe
    out 0x64, al
    jmp final_halt
final_reset_cf9:
    mov edx, 0xcf9
    mov al, 0x02
    out dx, al
    mov al, 0x06
    out dx, al
    jmp final_halt
final_poweroff:
    mov edx, {sleep_control}
    mov al, 0x34
    out dx, al
    mov edx, 0x604                      # PM1a control of ACPI that is not hardware-reduced, as QEMU places it
    mov ax, 0x2000
    out dx, ax
    jmp final_halt
final_triple:
    lidt [rip + no_idt]
    ud2
final_pvpanic:
    mov edx, {pvpanic}
    mov al, 1
    out dx, al
    jmp final_halt
    finish shutdown_final

.section .rodata
.balign 8
# In the order of `panic::Final`.
finals:
    .quad final_halt, final_spin, final_reset_8042, final_reset_cf9, final_poweroff, final_triple, final_pvpanic
no_idt: .skip 10
timeout_text: .asciz "timeout stopping cpus\n"
dumping_text: .asciz "Dumping 16 out of 64 MB:..100%\n"
dumped_text: .asciz "Dump complete\n"
.section .text.kernel

# Waits until every CPU is where its record puts it.
begin wait_for_all
2:  mov eax, [rip + cpus_in_kernel]
    cmp eax, [rip + order_others]
    jae 3f
    pause
    jmp 2b
3:  pop rbp
    ret
    finish wait_for_all

# RDI = ticks of the time-stamp counter.
begin tsc_delay
    rdtsc
    shl rdx, 32
    or rdx, rax
    lea rsi, [rdi + rdx]
2:  pause
    rdtsc
    shl rdx, 32
    or rdx, rax
    cmp rdx, rsi
    jb 2b
    pop rbp
    ret
    finish tsc_delay

# RDI = text, to the message buffer and, unless that is to be quiet, the console.
begin prf_putbuf
    mov rsi, [rip + msgbufp]
2:  mov cl, [rdi]
    test cl, cl
    jz 9f
    inc rdi
    cmp dword ptr [rip + order_quiet], 0
    jne 3f
    mov al, cl
    mov edx, 0x3f8
    out dx, al
3:  mov eax, [rsi + 16]                 # wseq
    xor edx, edx
    div dword ptr [rsi + 12]            # size
    add rdx, [rsi]
    movzx eax, cl
    xchg al, [rdx]
    sub [rsi + 24], eax                 # cksum: without the byte that was there, with the new one
    movzx eax, cl
    add [rsi + 24], eax
    mov eax, [rsi + 16]
    inc eax
    xor edx, edx
    div dword ptr [rsi + 28]            # seqmod
    mov [rsi + 16], edx
    jmp 2b
9:  pop rbp
    ret
    finish prf_putbuf
