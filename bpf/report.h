/* Counting, and telling the agent. */
#ifndef WEFT_REPORT_H
#define WEFT_REPORT_H

#include "maps.h"

static inline void count(u32 reason) {
    u64 *counter = counters.lookup(&reason);
    if (counter)
        (*counter)++;
}

/* A flood of refused connections must not become a flood of wake-ups: each CPU has a budget. */
static inline int within_budget(u64 now) {
    u32 zero = 0;
    struct budget *mine = budget.lookup(&zero);
    if (!mine)
        return 0;
    u64 second = now / 1000000000ULL;
    if (mine->second != second) {
        mine->second = second;
        mine->spent = 0;
    }
    return mine->spent++ < EVENTS_PER_SECOND;
}

/* Count, and record an event. */
static inline void report(u32 reason, u64 netns, u64 cgroup, const struct flow *flow) {
    count(reason);
    u64 now = bpf_ktime_get_ns();
    if (!within_budget(now)) {
        count(REASON_EVENTS_LIMITED);
        return;
    }
    struct event *event = events.ringbuf_reserve(sizeof(struct event));
    if (!event) {
        count(REASON_EVENTS_LOST);
        return;
    }
    event->time = now;
    event->netns = netns;
    event->cgroup = cgroup;
    event->flow = *flow;
    event->reason = reason;
    event->pad = 0;
    events.ringbuf_submit(event, 0);
}

#endif
