internal import GuestMemory
internal import Host
internal import Hypervisor

/// What a machine that stands still goes on with.
struct MachinePause: Sendable {
    fileprivate var time: StoppedTime
    fileprivate var controllers: ControllerSavedState
}

extension Machine {
    /// The processor stops between two instructions, the devices between two requests, and the guest's clocks with them.
    /// False: there is no processor that could, it has ended.
    func standStill() throws(MachineError) -> Bool {
        guard pause == nil else { return true }
        guard let thread, thread.pause() else { return false }
        let stopped: Result<MachinePause, HypervisorError>? = thread.perform { [virtualMachine] cpu in
            do throws(HypervisorError) {
                let time = StoppedTime(of: cpu)
                return .success(MachinePause(time: time, controllers: try ControllerSavedState(of: virtualMachine)))
            } catch {
                return .failure(error)
            }
        }
        guard let stopped else { return false }
        clock.stop()
        pci.pause()
        switch stopped {
        case .success(let state): pause = state
        case .failure(let error):
            goOn()
            throw MachineError("The machine cannot stand still: \(error)")
        }
        return true
    }

    /// Goes on where `standStill` has stopped it, as if no time had passed.
    func resume() throws(MachineError) {
        guard let pause, let thread else { return }
        self.pause = nil
        let result: Result<Void, HypervisorError>? = thread.perform { [virtualMachine] cpu in
            do throws(HypervisorError) {
                try pause.time.apply(to: cpu)
                try pause.controllers.setClock(of: virtualMachine)
                return .success(())
            } catch {
                return .failure(error)
            }
        }
        goOn()
        if case .failure(let error) = result { throw MachineError("The guest's clock cannot be set: \(error)") }
    }

    private func goOn() {
        clock.start()
        pci.resume()
        thread?.resume()
    }

    /// The whole machine, which stands still. It may go on afterwards, or end and give its disks and ports to another one
    /// that is built from this state.
    func save() throws(MachineError) -> MachineSavedState {
        guard let pause, let thread else { throw MachineError("Only a machine that stands still can be saved.") }
        let processor: Result<ProcessorSavedState, HypervisorError>? = thread.perform { cpu in
            do throws(HypervisorError) {
                return .success(try ProcessorSavedState(of: cpu))
            } catch {
                return .failure(error)
            }
        }
        guard let processor else { throw MachineError("The machine has ended.") }
        do {
            var state = MachineSavedState(
                processor: try processor.get(), controllers: try ControllerSavedState(of: virtualMachine),
                board: board.save(), pci: pci.save(), memory: try memory.copy(), commandLine: commandLine,
                bootProtocol: bootProtocol, entryPoint: entryPoint)
            // The time of the pause's beginning, not of this call.
            state.controllers.clock = pause.controllers.clock
            state.processor.setTime(pause.time)
            return state
        } catch {
            throw MachineError("The machine cannot be saved: \(error)")
        }
    }
}
