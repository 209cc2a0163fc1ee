# Entry from a PVH or multiboot 1 loader, the way into long mode, and the way there of the
# other CPUs. AT&T syntax.
#
# A 64-bit ELF's own entry point is rt_entry64_elf, in 64-bit mode.
#
# What every other loader promises (Xen's PVH boot protocol; Multiboot Specification 0.6.96, 3.2):
# 32-bit protected mode, flat segments, paging off, interrupts off. EBX leads to the boot
# information; EAX is 0x2badb002 from multiboot and nothing in particular from PVH.

    .section .boot, "ax", @progbits
    .code32
    .balign 4
rt_multiboot_header:
    .long 0x1badb002
    .long 0x00010003                        # page-aligned modules, memory map, address fields
    .long -(0x1badb002 + 0x00010003)
    .long rt_multiboot_header
    .long __image_start
    .long __load_end
    .long __image_end
    .long rt_entry32

    .global rt_entry32
rt_entry32:
    # What the loader left, for boot::entry_state; the stack is whatever it is until it is noted.
    movl    %eax, rt_entry_state
    movl    %ebx, rt_entry_state + 8
    movl    %ecx, rt_entry_state + 16
    movl    %edx, rt_entry_state + 24
    movl    %esi, rt_entry_state + 32
    movl    %edi, rt_entry_state + 40
    movl    %ebp, rt_entry_state + 48
    movl    %esp, rt_entry_state + 56
    movl    $(rt_boot_block + {block_size}), %esp
    pushfl
    cli
    cld
    popl    rt_entry_state + 64
    movl    %eax, %ebp
    movl    %cr0, %eax
    movl    %eax, rt_entry_state + 72
    movl    %cr3, %eax
    movl    %eax, rt_entry_state + 80
    movl    %cr4, %eax
    movl    %eax, rt_entry_state + 88
    movl    $0xc0000080, %ecx
    rdmsr
    movl    %eax, rt_entry_state + 96
    movl    %edx, rt_entry_state + 100
    movw    %cs, rt_entry_state + 104
    movw    %ds, rt_entry_state + 106
    movw    %es, rt_entry_state + 108
    movw    %ss, rt_entry_state + 110
    movw    %fs, rt_entry_state + 112
    movw    %gs, rt_entry_state + 114
    str     rt_entry_state + 116
    xorl    %eax, %eax
    movl    $__bss_start, %edi
    movl    $__bss_end, %ecx
    subl    %edi, %ecx
    shrl    $2, %ecx
    rep stosl
    movl    $(rt_boot_block + {block_size}), %esi
    rdtsc
    movl    %eax, rt_entry_tsc
    movl    %edx, rt_entry_tsc + 4
    movl    $rt_entry64, %edi
    lgdt    rt_boot_gdt_ptr
    # Falls into rt_enter_long_mode: EDI where to go on, ESI the stack's top, EBX and EBP kept.

# CR4 gets OSFXSR because core may move 16 bytes through an XMM register; CR0 gets WP so that
# read-only pages are read-only at CPL 0.
rt_enter_long_mode:
    movl    %cr4, %eax
    orl     $0x620, %eax                    # PAE, OSFXSR, OSXMMEXCPT
    movl    %eax, %cr4
    movl    $rt_pml4, %eax
    movl    %eax, %cr3
    movl    $0xc0000080, %ecx
    rdmsr
    orl     $0x100, %eax                    # EFER.LME
    wrmsr
    movl    $0x80010033, %eax               # PG, WP, NE, ET, MP, PE
    movl    %eax, %cr0
    ljmpl   $0x08, $rt_long_mode

# The other CPUs arrive here from the trampoline.
rt_ap_entry32:
    movl    $0x10, %eax
    movl    %eax, %ds
    movl    %eax, %es
    movl    %eax, %ss
    movl    $1, %ebx
    lock xaddl %ebx, rt_ap_arrivals
    cmpl    rt_ap_limit, %ebx
    jae     1f
    movl    %ebx, %esi
    shll    $16, %esi
    addl    rt_ap_blocks, %esi
    addl    ${block_size}, %esi
    movl    $rt_ap_entry64, %edi
    jmp     rt_enter_long_mode
1:  cli                                     # more CPUs than blocks: this one stays out
    hlt
    jmp     1b

    .section .note.Xen, "a", @note
    .balign 4
    .long   4, 8, 18                        # name, descriptor, XEN_ELFNOTE_PHYS32_ENTRY
    .asciz  "Xen"
    .quad   rt_entry32

    .section .text.rt_entry, "ax", @progbits
    .code64
rt_long_mode:
    movl    $0x10, %eax
    movl    %eax, %ds
    movl    %eax, %es
    movl    %eax, %ss
    xorl    %eax, %eax
    movl    %eax, %fs
    movl    %eax, %gs
    movl    %esi, %esp
    jmpq    *%rdi
# The ELF's entry point, for a loader that knows neither protocol: 64-bit mode with the first
# 4 GiB mapped one to one, and hvm_start_info at RDI. Joins the way of the 32-bit entry.
    .global rt_entry64_elf
rt_entry64_elf:
    movq    %rax, rt_entry_state
    movq    %rbx, rt_entry_state + 8
    movq    %rcx, rt_entry_state + 16
    movq    %rdx, rt_entry_state + 24
    movq    %rsi, rt_entry_state + 32
    movq    %rdi, rt_entry_state + 40
    movq    %rbp, rt_entry_state + 48
    movq    %rsp, rt_entry_state + 56
    movl    $(rt_boot_block + {block_size}), %esp
    pushfq
    cli
    cld
    popq    rt_entry_state + 64
    movq    %cr0, %rax
    movq    %rax, rt_entry_state + 72
    movq    %cr3, %rax
    movq    %rax, rt_entry_state + 80
    movq    %cr4, %rax
    movq    %rax, rt_entry_state + 88
    movl    $0xc0000080, %ecx
    rdmsr
    movl    %eax, rt_entry_state + 96
    movl    %edx, rt_entry_state + 100
    movw    %cs, rt_entry_state + 104
    movw    %ds, rt_entry_state + 106
    movw    %es, rt_entry_state + 108
    movw    %ss, rt_entry_state + 110
    movw    %fs, rt_entry_state + 112
    movw    %gs, rt_entry_state + 114
    str     rt_entry_state + 116
    movl    %edi, %ebx
    xorl    %ebp, %ebp
    xorl    %eax, %eax
    movl    $__bss_start, %edi
    movl    $__bss_end, %ecx
    subl    %edi, %ecx
    shrl    $3, %ecx
    rep stosq
    rdtsc
    movl    %eax, rt_entry_tsc
    movl    %edx, rt_entry_tsc + 4
    lgdt    rt_boot_gdt_ptr
    movq    %cr4, %rax
    orl     $0x620, %eax                    # PAE, OSFXSR, OSXMMEXCPT
    movq    %rax, %cr4
    movl    $rt_pml4, %eax
    movq    %rax, %cr3
    movl    $0x80010033, %eax               # PG, WP, NE, ET, MP, PE
    movq    %rax, %cr0
    movl    $(rt_boot_block + {block_size}), %esi
    movl    $rt_entry64, %edi
    ljmpl   *rt_long_mode_pointer
rt_entry64:
    movl    %ebp, %edi
    movl    %ebx, %esi
    xorl    %ebp, %ebp
    call    {start}
    ud2
rt_ap_entry64:
    movl    %ebx, %edi
    xorl    %ebp, %ebp
    call    {ap_start}
    ud2

# Real-mode start of the other CPUs. Copied to a page below 1 MiB, so it names nothing in the
# image but by absolute 32-bit address, and finds itself through CS.
    .section .trampoline, "ax", @progbits
    .code16
    .global rt_trampoline
    .global rt_trampoline_end
rt_trampoline:
    cli
    movw    %cs, %ax
    movw    %ax, %ds
    lgdtl   1f - rt_trampoline
    movl    %cr0, %eax
    orl     $1, %eax
    movl    %eax, %cr0
    ljmpl   $0x30, $rt_ap_entry32
    .balign 4
1:  .word   {gdt_limit}
    .long   rt_boot_gdt
rt_trampoline_end:
    .code64

    .section .data.pages, "aw", @progbits
# Identity map of the first 4 GiB in 2 MiB pages, as constants: building it would cost thousands
# of instructions on a host that interprets them. Tables allow what leaves may forbid.
    .balign 4096
    .global rt_pml4
rt_pml4:
    .quad   rt_pdpt + 0x7
    .skip   511 * 8
rt_pdpt:
    .quad   rt_pds + 0x7, rt_pds + 0x1007, rt_pds + 0x2007, rt_pds + 0x3007
    .skip   508 * 8
rt_pds:
    .set    i, 0
    .rept   2048
    .quad   i * 0x200000 + 0x83             # present, writable, 2 MiB
    .set    i, i + 1
    .endr

    .section .data.rt_boot_gdt, "aw", @progbits
    .balign 8
# The same first entries as rt::cpu gives every CPU.
    .global rt_boot_gdt
rt_boot_gdt:
    .quad   0
    .quad   {gdt_code64}
    .quad   {gdt_data}
    .quad   0, 0, 0
    .quad   {gdt_code32}
rt_boot_gdt_ptr:
    .word   {gdt_limit}
    .long   rt_boot_gdt
    .balign 4
    .global rt_ap_limit
    .global rt_ap_blocks
rt_ap_arrivals: .long 0
rt_ap_limit:    .long 0
rt_ap_blocks:   .long 0
rt_long_mode_pointer:
    .long   rt_long_mode
    .word   0x08
    .balign 8
    .global rt_entry_tsc
rt_entry_tsc:   .quad 0
# An `EntryState` (rt/src/boot.rs); its 64-bit fields have zeroes above what 32-bit code stores.
    .global rt_entry_state
rt_entry_state: .skip 120

    .section .noinit, "aw", @nobits
    .global rt_boot_block
rt_boot_block:
    .skip   {block_size}
