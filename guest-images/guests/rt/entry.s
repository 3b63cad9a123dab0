# The first instructions of every CPU, and all that a guest ever runs in ring 0.
#
# The PVH entry (32-bit, paging off, EBX = start info) and the start of the other CPUs (real mode, from a copy below
# 1 MiB) meet at `enter_long_mode`, which leaves for Rust code in ring 3 at once. Ring 3 owns the machine: every page
# is a user page and the I/O permission bitmap of each TSS opens all ports below 0x1000. There are two reasons. Some
# KVM hosts emulate ring 0 one instruction at a time, without SSE, and run ring 3 natively; and a stray instruction of
# the guest becomes an exception that it can report. (The bitmap, not IOPL: such a host does not keep IOPL.)
#
# Given by the Rust side: {max_cpus}, {stack_size}, {tss_size}. Symbols: cpu_tss and cpu_stacks (arrays of those sizes),
# trap_report (u64[4]), boot and join (where ring 3 goes on), report_trap, idt.

.set CODE32, 0x08
.set DATA, 0x10
.set CODE64, 0x18
.set USER_DATA, 0x2b
.set USER_CODE, 0x33
.set TSS, 0x38
.set IO_BITMAP, 104
.set IO_BITMAP_SIZE, 0x1000 / 8

.set LAPIC_ID, 0xfee00020

.section .note.Xen, "a", @note
    .balign 4
    .long 4, 4, 18                      # XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long pvh_start

.section .text.entry, "ax"
.code32
.global pvh_start
.type pvh_start, @function
pvh_start:
    cli
    cld
    # One page of 2 MiB pages maps the first GiB; another maps the local APIC alone. Ring 3 adds what else there is.
    mov dword ptr [page_map], offset page_pointers + 7
    mov dword ptr [page_pointers], offset first_gib + 7
    mov dword ptr [page_pointers + 3 * 8], offset last_gib + 7
    mov eax, 0x87                       # present, writable, user, 2 MiB
    mov edi, offset first_gib
2:  mov [edi], eax
    add edi, 8
    add eax, 0x200000
    cmp edi, offset first_gib + 4096
    jb 2b
    mov dword ptr [last_gib + 503 * 8], 0xfee00097      # as above, uncached
    mov ebp, offset first_cpu
    jmp enter_long_mode
.size pvh_start, . - pvh_start

# In: 32-bit flat segments, paging off, EBP = where to go on in ring 3, EBX = first argument there.
enter_long_mode:
    mov eax, offset page_map
    mov cr3, eax
    mov eax, 0x620                      # PAE, OSFXSR, OSXMMEXCPT
    mov cr4, eax
    mov ecx, 0xc0000080                 # EFER
    mov eax, 0x100                      # LME
    xor edx, edx
    wrmsr
    mov eax, 0x80000033                 # PG, NE, ET, MP, PE
    mov cr0, eax
    lgdt [gdt_pointer]
    .byte 0xea                          # far jump
    .long long_mode
    .word CODE64

.code64
long_mode:
    mov eax, USER_DATA
    mov ds, ax
    mov es, ax
    mov eax, DATA
    mov ss, ax
    mov esi, LAPIC_ID
    mov esi, [rsi]
    shr esi, 24                         # number of this CPU
    cmp esi, {max_cpus}
    jae one_too_many
    # Its TSS: ring-0 stack at the end of the block, every port allowed.
    mov edi, esi
    imul edi, edi, {tss_size}
    add edi, offset cpu_tss
    lea esp, [rdi + {tss_size}]
    mov [rdi + 4], rsp
    mov word ptr [rdi + 102], IO_BITMAP
    mov byte ptr [rdi + IO_BITMAP + IO_BITMAP_SIZE], 0xff
    # Its descriptor; the image ends below 16 MiB, so the base has 24 bits.
    mov eax, esi
    shl eax, 4
    mov rdx, rdi
    shl rdx, 16
    mov rcx, 0x0000890000000000 + IO_BITMAP + IO_BITMAP_SIZE
    or rdx, rcx
    mov [gdt + TSS + rax], rdx
    mov dword ptr [gdt + TSS + 8 + rax], 0
    add eax, TSS
    ltr ax
    lidt [idt_pointer]
    # Its stack, and off to ring 3.
    lea eax, [rsi + 1]
    imul eax, eax, {stack_size}
    add eax, offset cpu_stacks - 8      # as if called
    push USER_DATA
    push rax
    push 2
    push USER_CODE
    push rbp
    mov edi, ebx
    iretq

# First CPU, ring 3: makes the image's memory as new, whatever an earlier start left in it.
first_cpu:
    mov rdx, rdi
    mov edi, offset bss_start
    mov ecx, offset bss_end
    sub ecx, edi
    xor eax, eax
    rep stosb
    mov rdi, rdx
    jmp boot

# The start of the other CPUs in real mode. `smp` copies it to a page below 1 MiB; nothing in it depends on which.
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
    .long other_cpu
    .word CODE32
trampoline_gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt
trampoline_end:

.code32
other_cpu:
    mov eax, DATA
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov ebp, offset join
    jmp enter_long_mode

# Exceptions: 32 stubs of 16 bytes. Each notes what happened in trap_report and goes on in ring 3.
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
    pop qword ptr [trap_report]
    pop qword ptr [trap_report + 8]
    pop qword ptr [trap_report + 16]    # RIP
    mov rax, cr2
    mov [trap_report + 24], rax
    push USER_DATA
    mov eax, offset trap_stack_end - 8
    push rax
    push 2
    push USER_CODE
    mov eax, offset report_trap
    push rax
    iretq

# INT3 in ring 3 goes on behind it in ring 0, on the CPU's small stack, for the little that only ring 0 can do. INT3
# because a KVM host that runs ring 3 natively delivers no other software interrupt.
.global enter_ring_0
enter_ring_0:
    ret                                 # to the pushed RIP; CS stays that of ring 0

one_too_many:
    cli
    hlt
    jmp one_too_many

.section .data.descriptors, "aw"
.balign 8
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
idt_pointer:
    .word {idt_size} - 1
    .quad idt

.section .bss.scratch, "aw", @nobits
.balign 4096
.global page_map, page_pointers, last_gib
page_map: .skip 4096
page_pointers: .skip 4096
first_gib: .skip 4096
last_gib: .skip 4096
trap_stack: .skip 4096
trap_stack_end:
