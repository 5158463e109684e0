# The guest that finds out whether KVM works: a firmware image, so that nothing else runs before it.
#
# It takes the way of every kernel, since there are hosts whose KVM goes no further than a part of it: real mode, protected
# mode, paging and long mode. There it works for as long as a processor takes a twentieth of a second for, and copies some
# memory: where the host's kernel carries out the instructions one by one, as under a hypervisor without nested
# virtualisation, a machine would seem to hang. Then it waits for three interrupts of the local APIC's timer, each of which
# wakes it up. Only the last writes 0x35 to port 0xf4, where QEMU's isa-debug-exit ends with status 107.
#
# It is mapped twice: below 4 GiB, where it starts, and below 1 MiB, where it goes on.

        .set    low, 0xf0000            # where it is mapped below 1 MiB
        .set    pml4, 0x1000            # four page tables in memory, then the interrupt descriptors
        .set    pdpt, 0x2000
        .set    first, 0x3000           # the first GiB
        .set    fourth, 0x4000          # the fourth, where the APIC is
        .set    idt, 0x5000
        .set    stack, 0x8000
        .set    vector, 0x40

        .code16
start:
        cli
        lgdtl   %cs:(gdt_pointer - start)
        movl    %cr0, %eax
        orl     $1, %eax
        movl    %eax, %cr0
        ljmpl   $8, $(protected - start + low)

        .code32
protected:
        movl    $16, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        movl    $stack, %esp
        xorl    %eax, %eax
        movl    $pml4, %edi
        movl    $((stack - pml4) / 4), %ecx
        rep stosl
        movl    $(pdpt + 3), pml4
        movl    $(first + 3), pdpt
        movl    $(fourth + 3), pdpt + 24
        movl    $0x83, first            # 2 MiB at 0
        movl    $0xfee0009b, fourth + 0x1f7 * 8 # 2 MiB at the APIC, not cached
        movl    $(((24 << 16) + (handler - start))), idt + vector * 16
        movl    $((low & 0xffff0000) + 0x8e00), idt + vector * 16 + 4
        movl    $pml4, %eax
        movl    %eax, %cr3
        movl    %cr4, %eax
        orl     $0x20, %eax             # physical address extension
        movl    %eax, %cr4
        movl    $0xc0000080, %ecx       # extended features
        rdmsr
        orl     $0x100, %eax            # long mode
        wrmsr
        movl    %cr0, %eax
        orl     $0x80000000, %eax       # paging
        movl    %eax, %cr0
        ljmpl   $24, $(long - start + low)

        .code64
long:
        lidt    idt_pointer - start + low
        movl    $50000000, %ecx
1:      decl    %ecx
        jnz     1b
        movl    $8, %edx                # 4 MiB in all
2:      movl    $0x100000, %esi
        movl    $0x180000, %edi
        movl    $0x10000, %ecx
        rep movsq
        decl    %edx
        jnz     2b
        movl    $0xfee00000, %ebx
        xorl    %ebp, %ebp
        movl    $0x1ff, 0xf0(%rbx)      # spurious interrupts at 0xff, and on
        movl    $0xb, 0x3e0(%rbx)       # the timer's divisor: 1
        movl    $vector, 0x320(%rbx)    # once
        movl    $100000, 0x380(%rbx)    # from here down
        sti
1:      hlt
        jmp     1b

handler:
        movl    $0, 0xb0(%rbx)          # end of interrupt
        incl    %ebp
        cmpl    $3, %ebp
        je      2f
        movl    $100000, 0x380(%rbx)
        iretq
2:      movl    $0x35, %eax
        movw    $0xf4, %dx
        outl    %eax, %dx
3:      hlt
        jmp     3b

        .balign 8
gdt:
        .quad   0
        .quad   0x00cf9b000000ffff      # 8: code, 32 bits
        .quad   0x00cf93000000ffff      # 16: data
        .quad   0x00af9b000000ffff      # 24: code, 64 bits
gdt_pointer:
        .word   gdt_pointer - gdt - 1
        .long   gdt - start + low
idt_pointer:
        .word   0xfff
        .quad   idt
