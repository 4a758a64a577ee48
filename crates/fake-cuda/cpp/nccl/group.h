// Groups: what a thread calls between ncclGroupStart and ncclGroupEnd happens at the end.
#pragma once
#include <functional>

#include "communicator.h"

namespace nccl {

bool group_is_open();
/// Keeps a collective for ncclGroupEnd.
void group_keeps(CommunicatorPtr communicator, std::function<ncclResult_t()> enqueue);
/// Makes ncclGroupEnd wait for something that runs in the background.
void group_waits_for(CommunicatorPtr communicator);

}  // namespace nccl
