/* A name service whose weather the tests make.
 *
 * KSTEST_STATE names a file that is read again at each call:
 *
 *     weather up|notfound|unavail|tryagain|hang ERRNO TIMES   what every call does
 *     getpw|getgr|initgroups up|notfound|… ERRNO TIMES        overrides it for those calls
 *     user NAME UID GID
 *     group NAME GID MEMBER                                   one line a member; "-" for none
 *
 * With TIMES, the weather clears up after so many calls, of whatever kind, that met it.
 * NSS_PREFIX is the service's name, so that the same source can play another service's part.
 */
#include <errno.h>
#include <grp.h>
#include <nss.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifndef NSS_PREFIX
#define NSS_PREFIX kstest
#endif
#define JOIN_(a, b, c) a##b##c
#define JOIN(a, b, c) JOIN_(a, b, c)
#define FN(name) JOIN(_nss_, NSS_PREFIX, _##name)

static FILE *open_state(void) {
  const char *path = getenv("KSTEST_STATE");
  return path ? fopen(path, "re") : NULL;
}

/* Return SUCCESS when the service is up, else what the weather says. */
static enum nss_status weather(const char *call, int *errnop) {
  char line[256], word[32], how[32];
  char chosen[32] = "up";
  static int met;
  int number, times, chosen_number = 0, chosen_times = 0, specific = 0;
  FILE *state = open_state();
  if (state == NULL) {
    *errnop = ENOENT;
    return NSS_STATUS_UNAVAIL;
  }
  while (fgets(line, sizeof line, state)) {
    number = times = 0;
    if (sscanf(line, "%31s %31s %d %d", word, how, &number, &times) < 2) continue;
    if (strcmp(word, call) == 0) specific = 1;
    if (strcmp(word, call) == 0 || (!specific && strcmp(word, "weather") == 0)) {
      strcpy(chosen, how);
      chosen_number = number;
      chosen_times = times;
    }
  }
  fclose(state);
  if (chosen_times > 0 && met++ >= chosen_times) return NSS_STATUS_SUCCESS;
  *errnop = chosen_number;
  if (strcmp(chosen, "hang") == 0)
    for (;;) pause();
  if (strcmp(chosen, "notfound") == 0) return NSS_STATUS_NOTFOUND;
  if (strcmp(chosen, "unavail") == 0) return NSS_STATUS_UNAVAIL;
  if (strcmp(chosen, "tryagain") == 0) return NSS_STATUS_TRYAGAIN;
  return NSS_STATUS_SUCCESS;
}

static enum nss_status find_user(const char *name, uid_t uid, struct passwd *result, char *buffer,
                                 size_t length, int *errnop) {
  char line[256], found[64];
  unsigned int found_uid, found_gid;
  enum nss_status status = weather("getpw", errnop);
  if (status != NSS_STATUS_SUCCESS) return status;
  FILE *state = open_state();
  if (state == NULL) return NSS_STATUS_UNAVAIL;
  status = NSS_STATUS_NOTFOUND;
  while (fgets(line, sizeof line, state)) {
    if (sscanf(line, "user %63s %u %u", found, &found_uid, &found_gid) != 3) continue;
    if (name ? strcmp(name, found) != 0 : uid != found_uid) continue;
    size_t name_length = strlen(found) + 1;
    if (length < name_length + 4096) { /* makes the caller grow its buffer */
      *errnop = ERANGE;
      status = NSS_STATUS_TRYAGAIN;
      break;
    }
    memcpy(buffer, found, name_length);
    buffer[name_length] = '\0';
    result->pw_name = buffer;
    result->pw_passwd = result->pw_gecos = result->pw_dir = result->pw_shell =
        buffer + name_length;
    result->pw_uid = found_uid;
    result->pw_gid = found_gid;
    status = NSS_STATUS_SUCCESS;
    break;
  }
  fclose(state);
  return status;
}

static enum nss_status find_group(const char *name, gid_t gid, struct group *result, char *buffer,
                                  size_t length, int *errnop) {
  char line[256], found[64], member[64];
  unsigned int found_gid;
  enum nss_status status = weather("getgr", errnop);
  if (status != NSS_STATUS_SUCCESS) return status;
  FILE *state = open_state();
  if (state == NULL) return NSS_STATUS_UNAVAIL;
  status = NSS_STATUS_NOTFOUND;
  while (fgets(line, sizeof line, state)) {
    if (sscanf(line, "group %63s %u %63s", found, &found_gid, member) != 3) continue;
    if (name ? strcmp(name, found) != 0 : gid != found_gid) continue;
    size_t name_length = strlen(found) + 1;
    if (length < name_length + 4 * sizeof(char *)) {
      *errnop = ERANGE;
      status = NSS_STATUS_TRYAGAIN;
      break;
    }
    char **members = (char **)(((size_t)buffer + sizeof(char *)) & ~(sizeof(char *) - 1));
    members[0] = NULL; /* incomplete on purpose, as with nested groups */
    result->gr_mem = members;
    result->gr_name = result->gr_passwd = (char *)(members + 1);
    memcpy(result->gr_name, found, name_length);
    result->gr_gid = found_gid;
    status = NSS_STATUS_SUCCESS;
    break;
  }
  fclose(state);
  return status;
}

enum nss_status FN(getpwuid_r)(uid_t uid, struct passwd *result, char *buffer, size_t length,
                               int *errnop) {
  return find_user(NULL, uid, result, buffer, length, errnop);
}

enum nss_status FN(getpwnam_r)(const char *name, struct passwd *result, char *buffer,
                               size_t length, int *errnop) {
  return find_user(name, 0, result, buffer, length, errnop);
}

enum nss_status FN(getgrgid_r)(gid_t gid, struct group *result, char *buffer, size_t length,
                               int *errnop) {
  return find_group(NULL, gid, result, buffer, length, errnop);
}

enum nss_status FN(getgrnam_r)(const char *name, struct group *result, char *buffer,
                               size_t length, int *errnop) {
  return find_group(name, 0, result, buffer, length, errnop);
}

#ifndef NO_INITGROUPS
enum nss_status FN(initgroups_dyn)(const char *user, gid_t primary, long int *start,
                                   long int *size, gid_t **groups, long int limit, int *errnop) {
  char line[256], found[64], member[64];
  unsigned int found_gid;
  enum nss_status status = weather("initgroups", errnop);
  if (status != NSS_STATUS_SUCCESS) return status;
  FILE *state = open_state();
  if (state == NULL) return NSS_STATUS_UNAVAIL;
  status = NSS_STATUS_NOTFOUND;
  while (fgets(line, sizeof line, state)) {
    if (sscanf(line, "group %63s %u %63s", found, &found_gid, member) != 3) continue;
    if (strcmp(member, user) != 0 || found_gid == primary) continue;
    if (*start == *size) {
      gid_t *grown = realloc(*groups, 2 * *size * sizeof(gid_t));
      if (grown == NULL) {
        *errnop = ENOMEM;
        status = NSS_STATUS_TRYAGAIN;
        break;
      }
      *groups = grown;
      *size *= 2;
    }
    if (limit > 0 && *start >= limit) break;
    (*groups)[(*start)++] = found_gid;
    status = NSS_STATUS_SUCCESS;
  }
  fclose(state);
  return status;
}
#endif
