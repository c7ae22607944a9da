// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace programs {

/// Prepares OpenMP for `threads >= 1` threads: no region takes more, loading included, and threads
/// sleep after a short wait, where by default they wait in a loop: on a machine that does other
/// work, the thread that they wait for may not be running.
///
/// OpenMP reads how to wait once, when a program starts. So with more than one thread the program
/// starts itself again, with the same arguments and streams, unless OMP_WAIT_POLICY, GOMP_SPINCOUNT
/// or KMP_BLOCKTIME says how to wait. Call it before any thread is started or input is read. Where
/// it cannot be done (other systems than Linux) the program goes on as it is.
void prepare_threads(char** argv, int threads);

}  // namespace programs
