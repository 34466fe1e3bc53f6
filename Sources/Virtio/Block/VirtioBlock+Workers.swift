internal import Host
internal import Synchronization

/// What the runner's threads do.
extension VirtioBlock {
    // MARK: All requests, where there is no ring

    /// One more worker for a queue, unless there are enough.
    func startWorker(_ queue: Int, _ context: VirtioContext) {
        let isNeeded = state.withLock { state in
            guard state.lanes[queue].workers < parallelism else { return false }
            state.lanes[queue].workers += 1
            return true
        }
        guard isNeeded else { return }
        guard context.gate.enter() else { return state.withLock { $0.lanes[queue].workers -= 1 } }
        runner.run { [self] in
            work(queue, context)
            context.gate.leave()
        }
    }

    private func work(_ index: Int, _ context: VirtioContext) {
        let queue = context.queues[index]
        while true {
            while let chain = queue.next() {
                if parallelism > 1, queue.requestNotification() { startWorker(index, context) }
                execute(chain, queue, context)
            }
            if queue.requestNotification() { continue }
            // A notification that came since would find enough workers: it must not be lost.
            let isOver = state.withLock { state in
                guard !state.lanes[index].hasNews else {
                    state.lanes[index].hasNews = false
                    return false
                }
                state.lanes[index].workers -= 1
                return true
            }
            if isOver { return }
        }
    }

    // MARK: Single requests, beside a ring

    /// Has a thread do what cannot be done without waiting. Its user has entered the gate for it.
    func handOver(_ job: BlockJob, _ queue: Int, _ context: VirtioContext) {
        let isNeeded = state.withLock { state in
            state.lanes[queue].backlog.append(job)
            guard state.lanes[queue].workers < parallelism else { return false }
            state.lanes[queue].workers += 1
            return true
        }
        if isNeeded { runner.run { [self] in workOff(queue, context) } }
    }

    private func workOff(_ index: Int, _ context: VirtioContext) {
        while let job = state.withLock({ $0.lanes[index].nextJob() }) {
            perform(job, index, context)
            context.gate.leave()
        }
    }

    private func perform(_ job: BlockJob, _ index: Int, _ context: VirtioContext) {
        let queue = context.queues[index]
        switch job {
        case .execute(let chain): execute(chain, queue, context)
        case .flush(let chain):
            let outcome = attempt(context) { () throws(BlockError) in
                try backend.flush()
                return .ok
            }
            settle(chain, outcome, queue, context)
        }
    }
}
