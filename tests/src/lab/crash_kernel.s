# Loads the kernel that is open as 3 with the initramfs that is open as 4 as the crash kernel: kexec_file_load(2).
        .set    KEXEC_FILE_LOAD, 320
        .set    KEXEC_FILE_ON_CRASH, 2
        .set    EXIT, 60

        .globl  _start
_start: mov     $KEXEC_FILE_LOAD, %eax
        mov     $3, %edi
        mov     $4, %esi
        mov     $(end - line), %edx
        lea     line(%rip), %r10
        mov     $KEXEC_FILE_ON_CRASH, %r8d
        syscall
        mov     %eax, %edi
        neg     %edi
        mov     $EXIT, %eax
        syscall

# Its command line, with the byte that ends it. One CPU: the others are wherever the panic stopped them.
line:   .asciz  "console=ttyS0 nr_cpus=1 reset_devices"
end:
        .section .note.GNU-stack, "", @progbits
