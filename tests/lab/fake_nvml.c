/* A libnvidia-ml of the tests' own: it counts and names the GPUs of a list, as NVML would.
 *
 * The list is the file /etc/lab-gpus of the host or container, a line for each GPU: its UUID, a tab
 * and its name. Without the file no driver is loaded. Ray counts GPUs through this library.
 */
#include <stdio.h>
#include <string.h>

#define LIST "/etc/lab-gpus"
#define MOST 64

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_FOUND = 6, TOO_SMALL = 7, NO_DRIVER = 9 };

static struct gpu {
  char uuid[96], name[96];
} gpus[MOST];
static unsigned count;

int nvmlInit_v2(void) {
  FILE *list = fopen(LIST, "r");
  if (!list) return NO_DRIVER;
  for (count = 0; count < MOST; count++)
    if (fscanf(list, "%95[^\t]\t%95[^\n]\n", gpus[count].uuid, gpus[count].name) != 2) break;
  fclose(list);
  return SUCCESS;
}

int nvmlInitWithFlags(unsigned flags) { return (void)flags, nvmlInit_v2(); }

int nvmlShutdown(void) { return SUCCESS; }

int nvmlDeviceGetCount_v2(unsigned *found) { return *found = count, SUCCESS; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct gpu **device) {
  if (index >= count) return INVALID_ARGUMENT;
  return *device = &gpus[index], SUCCESS;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, struct gpu **device) {
  for (unsigned index = 0; index < count; index++)
    if (!strcmp(gpus[index].uuid, uuid)) return *device = &gpus[index], SUCCESS;
  return NOT_FOUND;
}

int nvmlDeviceGetIndex(struct gpu *device, unsigned *index) {
  return *index = (unsigned)(device - gpus), SUCCESS;
}

static int copy(const char *text, char *into, unsigned size) {
  if (strlen(text) >= size) return TOO_SMALL;
  return strcpy(into, text), SUCCESS;
}

int nvmlDeviceGetName(struct gpu *device, char *name, unsigned size) {
  return copy(device->name, name, size);
}

int nvmlDeviceGetUUID(struct gpu *device, char *uuid, unsigned size) {
  return copy(device->uuid, uuid, size);
}

const char *nvmlErrorString(int result) {
  return result == SUCCESS ? "The operation was successful" : "The tests' double refuses";
}
