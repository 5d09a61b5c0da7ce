/* Intel SDM vol. 3, "Exception and Interrupt Handling in 64-bit Mode". */
#include "trap.h"

#include "apic.h"
#include "layout.h"
#include "line.h"
#include "power.h"

#define INTERRUPT_GATE 0x8e /* present, DPL 0, clears the interrupt flag */

struct gate {
    uint16_t offset_low;
    uint16_t selector;
    uint8_t stack_table;
    uint8_t type;
    uint16_t offset_middle;
    uint32_t offset_high;
    uint32_t reserved;
};

struct frame {
    uint64_t rip, cs, rflags, rsp, ss;
};

#define HANDLER __attribute__((interrupt)) static void

volatile struct arrivals device_interrupts;
volatile struct arrivals timer_interrupts;
volatile struct arrivals pongs;

static struct gate gates[256] __attribute__((aligned(16)));
static uint32_t boot_processor;

static inline void record(volatile struct arrivals *arrivals)
{
    arrivals->last = rdtsc();
    /* After the time: who sees the count sees the time that belongs to it. */
    arrivals->count++;
    apic_eoi();
}

HANDLER on_device(struct frame *frame)
{
    (void)frame;
    record(&device_interrupts);
}

HANDLER on_timer(struct frame *frame)
{
    (void)frame;
    record(&timer_interrupts);
}

HANDLER on_ping(struct frame *frame)
{
    (void)frame;
    apic_send(boot_processor, ICR_FIXED(VECTOR_PONG));
    apic_eoi();
}

HANDLER on_pong(struct frame *frame)
{
    (void)frame;
    record(&pongs);
}

/* A spurious interrupt has no EOI. */
HANDLER on_spurious(struct frame *frame)
{
    (void)frame;
}

static _Noreturn void exception(const char *name, uint64_t address)
{
    line_end();
    line_text("exception ");
    line_text(name);
    line_text(" at ");
    line_hex(address);
    line_end();
    power_off(POWER_OFF_FAILED);
}

HANDLER on_divide_error(struct frame *frame)
{
    exception("#DE", frame->rip);
}

HANDLER on_invalid_opcode(struct frame *frame)
{
    exception("#UD", frame->rip);
}

HANDLER on_double_fault(struct frame *frame, uint64_t code)
{
    (void)code;
    exception("#DF", frame->rip);
}

HANDLER on_protection_fault(struct frame *frame, uint64_t code)
{
    (void)code;
    exception("#GP", frame->rip);
}

HANDLER on_page_fault(struct frame *frame, uint64_t code)
{
    (void)code;
    exception("#PF", frame->rip);
}

static void set_gate(uint8_t vector, void *handler)
{
    uintptr_t address = (uintptr_t)handler;

    gates[vector] = (struct gate){
        .offset_low = (uint16_t)address,
        .selector = CODE_SELECTOR,
        .type = INTERRUPT_GATE,
        .offset_middle = (uint16_t)(address >> 16),
        .offset_high = (uint32_t)(address >> 32),
    };
}

void traps_init(uint32_t boot_id)
{
    boot_processor = boot_id;
    set_gate(0, on_divide_error);
    set_gate(6, on_invalid_opcode);
    set_gate(8, on_double_fault);
    set_gate(13, on_protection_fault);
    set_gate(14, on_page_fault);
    set_gate(VECTOR_DEVICE, on_device);
    set_gate(VECTOR_TIMER, on_timer);
    set_gate(VECTOR_PING, on_ping);
    set_gate(VECTOR_PONG, on_pong);
    set_gate(VECTOR_SPURIOUS, on_spurious);
    traps_load();
}

void traps_load(void)
{
    struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) table = {sizeof gates - 1, (uintptr_t)gates};

    __asm__ volatile("lidt %0" : : "m"(table));
}
