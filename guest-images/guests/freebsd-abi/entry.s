# From the boot protocols to ring 3, and from there to the launch of every CPU into the kernel that a host looks at.
#
# Two entries meet at `high`: `btext`, FreeBSD's own (64-bit, on the loader's tables, in which every GiB aliases the
# first; modulep at 4(%rsp), kernend at 8(%rsp)), and `xen_start32`, that of PVH (32-bit, start info in EBX). Both make
# the boot tables at 1 MiB: four pages that map the first GiB at 0 and at KERNBASE, for ring 3 as well. The other CPUs
# come in through a trampoline below 1 MiB.
#
# Preparation runs in ring 3, since some KVM hosts emulate ring 0 one instruction at a time and without SSE; the
# boot tables and that stage leave no trace in what the kernel's own tables (KPML4phys) map. `launch` then puts a CPU
# where its record says: in ring 0 on the kernel's tables, or in ring 3 on a user process's.

.set KERNBASE, 0xffffffff80000000
.set BOOT_TABLES, 0x100000              # PML4; behind it PDP, directory of the first GiB, directory of the APICs' GiB

.set CODE32, 0x08
.set DATA, 0x10
.set CODE64, 0x18
.set USER_DATA, 0x2b
.set USER_CODE, 0x33
.set TSS, 0x38
.set IO_BITMAP, 104
.set IO_BITMAP_SIZE, 0x1000 / 8

.set EFER, 0xc0000080
.set GS_BASE, 0xc0000101
.set KERNEL_GS_BASE, 0xc0000102
.set CR0_KERNEL, 0x80050033             # PG AM WP NE ET MP PE
.set CR4_KERNEL, 0x6a0                  # OSXMMEXCPT OSFXSR PGE PAE
.set EFER_KERNEL, 0x901                 # NXE LME SCE

.section .note.Xen, "a", @note
    .balign 4
    .long 4, 4, 18                      # XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long xen_start32 - KERNBASE
.section .note.tag, "a", @note
    .balign 4
    .long 8, 4, 1                       # NT_FREEBSD_ABI_TAG
    .asciz "FreeBSD"
    .long {osreldate}

# The boot tables, in 32-bit and 64-bit code alike. Uses EAX, ECX, EDX, EDI.
.macro make_boot_tables
    cld
    mov edi, BOOT_TABLES
    xor eax, eax
    mov ecx, 4 * 1024
    rep stosd
    mov edi, BOOT_TABLES
    mov dword ptr [BOOT_TABLES], BOOT_TABLES + 0x1007
    mov dword ptr [BOOT_TABLES + 511 * 8], BOOT_TABLES + 0x1007
    mov dword ptr [BOOT_TABLES + 0x1000], BOOT_TABLES + 0x2007
    mov dword ptr [BOOT_TABLES + 0x1000 + 3 * 8], BOOT_TABLES + 0x3007
    mov dword ptr [BOOT_TABLES + 0x1000 + 510 * 8], BOOT_TABLES + 0x2007
    mov dword ptr [BOOT_TABLES + 0x3000 + 503 * 8], 0xfee00097
    mov edi, BOOT_TABLES + 0x2000
    mov eax, 0x87                       # present, writable, user, 2 MiB
    xor edx, edx
    mov ecx, 512
2:  stosd
    xchg eax, edx
    stosd
    xchg eax, edx
    add eax, 0x200000
    dec ecx
    jnz 2b
.endm

.section .text.entry, "ax"
.code64
.global btext
.type btext, @function
btext:
    mov ebx, [rsp + 4]                  # modulep
    mov esi, [rsp + 8]                  # kernend
    make_boot_tables
    mov eax, CR4_KERNEL
    mov cr4, rax
    mov ecx, EFER
    rdmsr
    or eax, EFER_KERNEL
    wrmsr
    mov eax, BOOT_TABLES
    mov cr3, rax
    mov eax, CR0_KERNEL
    mov cr0, rax
    xor ebp, ebp
    jmp high
.size btext, . - btext

.code32
.global xen_start32
.type xen_start32, @function
xen_start32:
    cli
    make_boot_tables
    mov ebp, 1
    xor esi, esi
enter_long_mode:
    mov eax, BOOT_TABLES
    mov cr3, eax
    mov eax, CR4_KERNEL
    mov cr4, eax
    mov ecx, EFER
    mov eax, EFER_KERNEL
    xor edx, edx
    wrmsr
    mov eax, CR0_KERNEL
    mov cr0, eax
    lgdt [low_gdt_pointer - KERNBASE]
    .byte 0xea                          # far jump
    .long long_mode - KERNBASE
    .word CODE64
.size xen_start32, . - xen_start32

.code64
long_mode:
    movabs rax, offset high
    jmp rax

# EBP = 0 native, 1 PVH, 2 another CPU; EBX and ESI = what the protocol gave. Any stack.
high:
    lgdt [rip + gdt_pointer]
    mov eax, USER_DATA
    mov ds, ax
    mov es, ax
    mov eax, DATA
    mov ss, ax
    mov edi, 0xfee00020
    mov edi, [rdi]
    shr edi, 24                         # number of this CPU
    cmp edi, {max_cpus}
    jae give_up
    lea eax, [rdi + 1]
    imul eax, eax, {stack_size}
    lea rsp, [rip + cpu_stacks]
    add rsp, rax
    # Its TSS: this stack for ring 0, every port allowed.
    mov eax, edi
    imul eax, eax, {tss_size}
    lea rdx, [rip + cpu_tss]
    add rdx, rax
    mov [rdx + 4], rsp
    mov word ptr [rdx + 102], IO_BITMAP
    mov byte ptr [rdx + IO_BITMAP + IO_BITMAP_SIZE], 0xff
    # Its descriptor: limit, base in four parts, type.
    mov eax, edi
    shl eax, 4
    lea rcx, [rip + gdt]
    lea rcx, [rcx + rax + TSS]
    mov word ptr [rcx], IO_BITMAP + IO_BITMAP_SIZE
    mov [rcx + 2], dx
    shr rdx, 16
    mov [rcx + 4], dl
    mov word ptr [rcx + 5], 0x0089
    mov [rcx + 7], dh
    shr rdx, 16
    mov [rcx + 8], edx
    mov dword ptr [rcx + 12], 0
    add eax, TSS
    ltr ax
    lidt [rip + idt_pointer]
    cmp ebp, 2
    je another_cpu

    push USER_DATA
    lea rax, [rip + boot_stack_end - 8]
    push rax
    push 2
    push USER_CODE
    lea rax, [rip + first_cpu]
    push rax
    mov r8d, ebx
    mov eax, 0x80000001
    cpuid
    mov ebx, r8d
    shr edx, 26
    and edx, 1
    mov r8d, edx                        # whether there are 1 GiB pages
    iretq

another_cpu:
    lock bts [rip + cpus_arrived], edi
2:  pause
    cmp dword ptr [rip + launch_now], 0
    je 2b
    jmp launch

give_up:
    cli
    hlt
    jmp give_up

# First CPU, ring 3: makes the image's memory as new, whatever an earlier start left in it.
first_cpu:
    lea rdi, [rip + bss_start]
    lea rcx, [rip + bss_end]
    sub rcx, rdi
    xor eax, eax
    rep stosb
    mov edi, ebp
    mov edx, esi
    mov esi, ebx
    mov ecx, r8d
    jmp boot

# Ring 3 leaves the preparation as CPU EDI.
.global enter_kernel
enter_kernel:
    int3
launch:
    imul eax, edi, {launch_size}
    lea rsi, [rip + launch_records]
    add rsi, rax
    mov ecx, GS_BASE
    mov eax, [rsi + 24]
    mov edx, [rsi + 28]
    wrmsr
    mov ecx, KERNEL_GS_BASE
    mov eax, [rsi + 32]
    mov edx, [rsi + 36]
    wrmsr
    mov rbx, [rsi + 48]
    mov r12, [rsi + 56]
    mov r13, [rsi + 64]
    mov r14, [rsi + 72]
    mov r15, [rsi + 80]
    mov rcx, [rsi]                      # CR3
    mov rdx, [rsi + 8]                  # RSP
    mov rdi, [rsi + 16]                 # RIP
    mov rax, [rsi + 40]                 # CS
    xor ebp, ebp
    test al, 3
    jnz launch_user
    mov cr3, rcx
    mov rsp, rdx
    jmp rdi
# What a user process's tables must map of the kernel, as with page-table isolation: this, the descriptors, the stacks.
launch_user:
    lock inc dword ptr [rip + cpus_in_kernel]
    push USER_DATA
    push rdx
    push 2
    push rax
    push rdi
    jmp leave_to_user

.section .text.pti, "ax"
.balign 4096
.global pti_text
pti_text:
leave_to_user:
    mov cr3, rcx
    iretq
.balign 4096

# What a user process runs: copied to a page of its own.
.section .rodata
.global user_loop
user_loop:
    .byte 0xf3, 0x90, 0xeb, 0xfc        # pause; jump back
user_loop_end:

# The start of the other CPUs in real mode. It is copied to a page below 1 MiB; nothing in it depends on which.
.section .text.entry
.global trampoline_start, trampoline_end
.code16
trampoline_start:
    cli
    cld
    mov ax, cs
    mov ds, ax
    .byte 0x66, 0x0f, 0x01, 0x16        # lgdt with all 32 bits of the base
    .word trampoline_gdt_pointer - trampoline_start
    mov eax, cr0
    or al, 1
    mov cr0, eax
    .byte 0x66, 0xea                    # far jump with a 32-bit offset
    .long other_cpu - KERNBASE
    .word CODE32
trampoline_gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt - KERNBASE
trampoline_end:

.code32
other_cpu:
    mov eax, DATA
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov ebp, 2
    jmp enter_long_mode

# Exceptions: 32 stubs of 16 bytes, which end in a report: the guest has a bug.
.code64
.balign 16
.global trap_stubs
trap_stubs:
.set vector, 0
.rept 32
    .balign 16
    .if (vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30)
    .else
    push 0                              # where the CPU pushes no error code
    .endif
    push vector
    jmp trap
    .set vector, vector + 1
.endr

trap:
    pop qword ptr [rip + trap_report]
    pop qword ptr [rip + trap_report + 8]
    pop qword ptr [rip + trap_report + 16]
    mov rax, cr2
    mov [rip + trap_report + 24], rax
    mov eax, BOOT_TABLES
    mov cr3, rax
    push USER_DATA
    lea rax, [rip + trap_stack_end - 8]
    push rax
    push 2
    push USER_CODE
    lea rax, [rip + report_trap]
    push rax
    iretq

# INT3 in ring 3 goes on behind it in ring 0. INT3 because a KVM host that runs ring 3 natively delivers no other
# software interrupt.
.global enter_ring_0
enter_ring_0:
    ret                                 # to the pushed RIP; CS stays that of ring 0

.section .data.descriptors, "aw"
.balign 4096
.global pti_data, pti_data_end
pti_data:
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff            # CODE32
    .quad 0x00cf93000000ffff            # DATA
    .quad 0x00af9b000000ffff            # CODE64
    .quad 0
    .quad 0x00cff3000000ffff            # USER_DATA: selectors of ring 3 as 64-bit Linux has them, since a KVM host
    .quad 0x00affb000000ffff            # USER_CODE  that runs ring 3 natively lets the guest see its own
    .fill 2 * {max_cpus}, 8, 0          # TSS of each CPU
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt
low_gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt - KERNBASE
idt_pointer:
    .word 32 * 16 - 1
    .quad idt
.balign 16
.global idt
idt:
    .fill 64, 8, 0
.balign 1024
cpu_tss:
    .fill {max_cpus} * {tss_size}, 1, 0
pti_data_end:

.section .bss.scratch, "aw", @nobits
.balign 4096
.global cpu_stacks
cpu_stacks: .skip {max_cpus} * {stack_size}
boot_stack: .skip 32768
boot_stack_end:
trap_stack: .skip 4096
trap_stack_end:

.bss
.balign 8
.global cpus_arrived, launch_now, cpus_in_kernel, launch_records, trap_report
cpus_arrived: .skip 8
launch_now: .skip 4
cpus_in_kernel: .skip 4
trap_report: .skip 32
launch_records: .skip {max_cpus} * {launch_size}
